"""The command line."""

from experiments.real_tables import main

raise SystemExit(main())
