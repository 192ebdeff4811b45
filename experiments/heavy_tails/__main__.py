"""The command line."""

from experiments.heavy_tails import main

raise SystemExit(main())
