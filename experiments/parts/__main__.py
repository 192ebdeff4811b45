"""The command line."""

from experiments.parts import main

raise SystemExit(main())
