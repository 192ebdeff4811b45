"""The command line."""

from experiments.toy_densities import main

raise SystemExit(main())
