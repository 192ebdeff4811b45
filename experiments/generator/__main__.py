"""The command line."""

from experiments.generator import main

raise SystemExit(main())
