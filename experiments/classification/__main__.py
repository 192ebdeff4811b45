"""The command line."""

from experiments.classification import main

raise SystemExit(main())
