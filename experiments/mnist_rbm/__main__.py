"""The command line."""

from experiments.mnist_rbm import main

raise SystemExit(main())
