"""The command line."""

from experiments.bars_and_stripes import main

raise SystemExit(main())
