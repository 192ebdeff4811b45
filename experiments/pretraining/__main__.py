"""The command line."""

from experiments.pretraining import main

raise SystemExit(main())
