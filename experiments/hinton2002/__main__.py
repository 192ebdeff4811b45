"""The command line."""

from experiments.hinton2002 import main

raise SystemExit(main())
