"""A verification set of CFP-FP's size never lies decoded in memory."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from faceshards.formats.verification_bin import write_bin
from tests.recs import jpeg

PAIRS = 7000

# In a process of its own: its peak is not that of other tests.
MEASURE = """
import json, sys
from evaluation.embedder import Embedder
from faceshards.formats.verification_bin import read_bin
from evaluation.protocol.verification import verify
from faceshards.progress import peak_memory

def forward(images):  # 512 of the pixels
    return images.reshape(len(images), -1)[:, :36864:72].copy()

before = peak_memory() / 2**20
entry = read_bin(sys.argv[1])
views, problems = Embedder(forward).views(entry.images)
result = verify(views[0] + views[1], entry.same, bootstrap=0)
print(json.dumps({"before": before, "after": peak_memory() / 2**20, "shape": views.shape, "problems": len(problems),
                  "pairs": result.pairs, "encoded": sum(map(len, entry.images)) / 2**20}))
"""


def test_seven_thousand_pairs(tmp_path, capsys):
    pictures = [jpeg(i) for i in range(40)]
    # A comment behind the end of each image makes 14,000 different ones.
    images = [pictures[i % 40] + i.to_bytes(4, "little") for i in range(2 * PAIRS)]
    path = tmp_path / "cfp_fp.bin"
    write_bin(path, images, np.arange(PAIRS) % 2 == 0)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)
    assert (got["shape"], got["problems"], got["pairs"]) == ([2, 2 * PAIRS, 512], 0, PAIRS)
    with capsys.disabled():
        print(
            f"\n7,000 pairs: {got['encoded']:.0f} MiB encoded, peak {got['before']:.0f} -> {got['after']:.0f} MiB",
            end="",
        )
    # As float32, both views: 14,000 x 2 x 3 x 112 x 112 x 4 bytes are 4,019 MiB; here encoded and embedded images only.
    assert got["after"] - got["before"] < 2 * got["encoded"] + 300
