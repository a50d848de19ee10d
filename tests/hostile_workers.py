"""Decoding processes that really crash, hang, lie or refuse to start, told by what an image begins with."""

from clipguard.data.decode.workers import COMMAND

PRELUDE = """
import os, signal, sys, time
sys.path[:] = sys.argv[2:]
from clipguard.data.decode import pixels, worker
sound = pixels.answer
seen = []
def answer(wanted, item, limits):
    seen.append(item)
    if item.startswith(b'crash') or (item.startswith(b'second') and len(seen) > 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    if item.startswith(b'exit'):
        os._exit(7)
    while item.startswith(b'spin'):
        pass
    if item.startswith(b'sleep'):
        time.sleep(1000)
    if item.startswith(b'swell'):
        bytearray(1 << 40)
    if item.startswith(b'write'):
        with open(item[5:].decode(), 'wb') as file:
            file.write(b'x')
    if item.startswith(b'print'):
        os.write(1, b'noise'); print('noise', flush=True)
    return sound(wanted, item.removeprefix(b'print').removeprefix(b'second'), limits)
worker.answer = answer
"""
FAULTY = (*COMMAND[:-1], PRELUDE + "worker.main(sys.argv[1])")
LIAR = (*COMMAND[:-1], "import os; os.write(1, b'clipguard' + bytes(range(1, 255)) * 9)")
ABSENT = (*COMMAND[:-1], "raise SystemExit(3)")
