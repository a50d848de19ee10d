"""Decoders that really crash, hang, lie or refuse to start, by what an image begins with."""

from clipguard.safety.sandbox import Role

PRELUDE = """
import os, signal, sys, time
sys.path[:] = sys.argv[2:]
from clipguard.data.decode import decoder as worker
real = worker.decoded
items = []
def decoded(request, item, limits):
    items.append(item)
    if item.startswith(b'crash') or (item.startswith(b'second') and len(items) > 1):
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
    return real(request, item.removeprefix(b'print').removeprefix(b'second'), limits)
worker.decoded = decoded
"""
FAULTY = Role("decoder", PRELUDE + "worker.main(sys.argv[1])")
LIAR = Role("decoder", "import os; os.write(1, b'clipguard' + bytes(range(1, 255)) * 9)")
ABSENT = Role("decoder", "raise SystemExit(3)")
