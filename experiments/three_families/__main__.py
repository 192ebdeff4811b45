"""The command line."""

from experiments.three_families import main

raise SystemExit(main())
