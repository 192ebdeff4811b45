"""The command line."""

from experiments.denoising import main

raise SystemExit(main())
