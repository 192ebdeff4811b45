"""The command line."""

from experiments.training_rules import main

raise SystemExit(main())
