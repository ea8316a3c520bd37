import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: tests fetch nothing from a hub
