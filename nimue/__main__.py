import sys

from nimue.cli import main

sys.exit(main())
