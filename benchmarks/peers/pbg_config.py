"""A configuration of PyTorch-BigGraph that is the JSON in the file that PBG_CONFIG names."""

import json
import os
from pathlib import Path


def get_torchbiggraph_config():
    """Return the configuration, as torchbiggraph_train asks for it."""
    return json.loads(Path(os.environ["PBG_CONFIG"]).read_text())
