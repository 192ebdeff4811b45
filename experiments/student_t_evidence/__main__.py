"""The command line."""

from experiments.student_t_evidence import main

raise SystemExit(main())
