"""The command line."""

from experiments.rbm_prior import main

raise SystemExit(main())
