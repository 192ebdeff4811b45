"""The command line."""

from experiments.source_recovery import main

raise SystemExit(main())
