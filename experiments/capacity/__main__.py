"""The command line."""

from experiments.capacity import main

raise SystemExit(main())
