"""Where real slides, embeddings and labelled sets lie; not part of the project, see SLIDE_MIL_DATA."""

import os
from pathlib import Path

DATA = Path(os.environ.get("SLIDE_MIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
