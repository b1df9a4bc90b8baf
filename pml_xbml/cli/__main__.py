from pml_xbml.cli import main

raise SystemExit(main())
