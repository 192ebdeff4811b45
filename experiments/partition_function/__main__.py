"""The command line."""

from experiments.partition_function import main

raise SystemExit(main())
