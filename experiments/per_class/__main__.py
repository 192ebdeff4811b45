"""The command line."""

from experiments.per_class import main

raise SystemExit(main())
