"""The command line."""

from experiments.multimodal_vae import main

raise SystemExit(main())
