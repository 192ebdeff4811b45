"""The command line."""

from experiments.natural_images import main

raise SystemExit(main())
