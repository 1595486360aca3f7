"`python -m tl_notebooks` is `tl`."
from .cli import main

raise SystemExit(main())
