"""``app.py`` of a Hub Space that shows a model.

Copy it into the Space as ``app.py``, beside a ``requirements.txt`` with the line ``transformers_upv2[app]``, and set
the Space's variable ``UPV2_MODEL`` to the model's name on the Hub. Here it runs as well::

    UPV2_MODEL=model_cards/uniperceiver-v2-tiny python scripts/space_app.py
"""

import os

from transformers_upv2.app import build_app

demo = build_app(os.environ.get("UPV2_MODEL", "model_cards/uniperceiver-v2-tiny"))

if __name__ == "__main__":
    demo.launch()
