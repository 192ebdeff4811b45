"""The command line."""

from experiments.benchmark import main

raise SystemExit(main())
