"""Rows and files for tests of data."""

import json


def texts(number, words=12):
    return [f"document {i} " + " ".join(f"w{i}x{j}" for j in range(words)) for i in range(number)]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)
