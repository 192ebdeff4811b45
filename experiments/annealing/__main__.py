"""The command line."""

from experiments.annealing import main

raise SystemExit(main())
