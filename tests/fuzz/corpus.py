"""Turns a folder of libFuzzer's inputs into a file with one per line, in hexadecimal digits, and back.

python tests/fuzz/corpus.py pack FOLDER FILE | unpack FILE FOLDER
"""

import hashlib
import sys
from pathlib import Path


def main(verb: str, source: str, target: str) -> None:
    if verb == "pack":
        contents = sorted({path.read_bytes() for path in Path(source).iterdir()}, key=lambda c: (len(c), c))
        Path(target).write_text("".join(content.hex() + "\n" for content in contents))
        return
    Path(target).mkdir(parents=True, exist_ok=True)
    for line in Path(source).read_text().split():
        content = bytes.fromhex(line)
        (Path(target) / hashlib.sha1(content).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
