# The package posttrain: an xz-compressed tar archive as base85 text, which is unpacked beside the
# notebook, where its files can be read and changed. Files that are there already are kept.
import base64
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

SHA256 = ""
PACKAGE = ""

compressed = base64.b85decode(PACKAGE)
if hashlib.sha256(compressed).hexdigest() != SHA256:
    raise RuntimeError(
        "The package in this cell was changed by accident. Upload the notebook again."
    )
with tarfile.open(fileobj=io.BytesIO(lzma.decompress(compressed))) as archive:
    texts = {entry.name: archive.extractfile(entry).read() for entry in archive}
if not Path("posttrain").exists():
    for name, content in texts.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    print(f"The package has been unpacked into {Path('posttrain').absolute()}.")
missing = [name for name in texts if not Path(name).exists()]
changed = [name for name in texts if name not in missing and Path(name).read_bytes() != texts[name]]
if missing or changed:
    print(
        f"Used as it is in {Path('posttrain').absolute()}, which differs from this notebook's "
        f"package: {', '.join(changed + missing)}. To have the notebook's, delete that folder, "
        "choose Runtime > Restart session, and run all cells."
    )
