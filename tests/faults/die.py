"""``mrcg`` that kills itself at a chosen moment: python die.py KIND MOMENT COMMAND...

KIND is the artefact in whose making it dies; MOMENT is ``files`` (all files written, none placed),
``manifest`` (files placed, manifest not yet there) or ``published`` (manifest there, attempt not removed).
"""

import os
import signal
import sys

from mrcg.cli.main import main
from mrcg.storage.attempts import Attempt
from mrcg.storage.store import Store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, moment: str) -> None:
    publish, create = Attempt.publish, Store.create

    def dying_publish(self, manifest):
        if moment == "files" and self.kind == kind:
            die()
        return publish(self, manifest)

    def dying_create(self, relative, data):
        mine = relative.startswith(f"{kind}/") and relative.endswith("manifest.json")
        if mine and moment == "manifest":
            die()
        create(self, relative, data)
        if mine:
            die()

    Attempt.publish, Store.create = dying_publish, dying_create


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2])
    main(sys.argv[3:])
