"""Answers with the number that lies in its folder, times the row; held in the gate as models/gated.py, row by row."""

import json
import os
import socket
import time
from pathlib import Path

import numpy as np


class Numbered:
    inputs = [{"name": "x", "datatype": "INT64", "shape": [-1, 1]}]
    outputs = [{"name": "y", "datatype": "INT64", "shape": [-1]}]
    batched = True

    def load(self, folder):
        folder = Path(folder)
        self.number = int((folder / "number.txt").read_text())
        if (folder / "ballast.txt").exists():
            # in a cycle, so that only the garbage collector can free it
            self.me, self.ballast = self, np.ones(int((folder / "ballast.txt").read_text()) // 8)

    def predict(self, inputs):
        # not in the event loop
        time.sleep(0.002)
        rows = inputs["x"].ravel()
        if (rows >= 1000).any():
            _tell(rows.tolist())
        return rows * self.number

    def close(self):
        if "GATE" in os.environ:
            _tell([self.number])


def _tell(rows):
    with socket.socket(socket.AF_UNIX) as gate:
        gate.connect(os.environ["GATE"])
        gate.sendall(json.dumps(rows).encode() + b"\n")
        gate.recv(1)
