"""The command line."""

from experiments.ranking import main

raise SystemExit(main())
