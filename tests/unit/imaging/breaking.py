"""An ``IsolatedReader`` child whose decoder does what the file says. It imports little, because it starts often."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from mrcg.errors import ImageError
from mrcg.imaging import isolated_reader
from mrcg.imaging.slices import Reading, ScanFacts, Slice

SECRET = "JANE^DOE"
#: The reading of any file that is not a command.
READ = Reading([Slice(np.arange(400, dtype=np.uint8).reshape(20, 20), 3, ScanFacts(plane="axial"))])


def breaking_read(data, settings):
    match data:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"exit":
            os._exit(0)
        case b"raise":
            raise KeyError(SECRET)
        case b"hang":
            time.sleep(1000)
        case b"memory":
            np.ones(2**40)
        case b"pieces":
            pieces = []
            while True:
                pieces.append(np.ones(2**20))
        case b"deep":
            return breaking_read(data, settings)
        case b"quote":
            try:
                raise ValueError(SECRET)
            except ValueError as error:
                raise ImageError("undecodable", "no decoder takes it") from error
        case b"talk":
            print(SECRET)
            print(SECRET, file=sys.stderr)
    return READ


if __name__ == "__main__":
    isolated_reader.read = breaking_read
    isolated_reader.serve(Connection(int(sys.argv[1])))
