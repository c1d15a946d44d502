# Google Drive, if the results or figures are to be there
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    from google.colab import drive

    folders = [Path(folder).absolute() for folder in (RESULTS, FIGURES) if folder]
    if any(folder.is_relative_to("/content/drive") for folder in folders):
        drive.mount("/content/drive")
