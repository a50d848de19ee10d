"""Nothing leaves the machine unless a download was asked for: no socket is used."""

import subprocess
import sys
import textwrap

from tiny_data import image_folder

WATCH = """
    import os, sys
    def hook(event, arguments):
        if event.startswith("socket.") and event not in ("socket.__new__",):
            os.write(2, f"NETWORK {event} {arguments}\\n".encode())
            os._exit(97)
    sys.addaudithook(hook)
"""

SCAN = """
    import huggingface_hub, open_clip, timm, torchvision
    from clipguard.cli import main
    from clipguard.compute.small_nets import SmallNetConfig
    SmallNetConfig.total_epochs = lambda config, trainable: 1 if config.fewest_steps else config.epochs
    run = sys.argv[2]
    assert main(["scan", sys.argv[1], "-o", run, "--guide", "mini"]) == 3
    assert main(["report", run]) == 0
    assert main(["verify", run, "--data", sys.argv[1]]) == 0
    print(os.environ["HF_HUB_DISABLE_TELEMETRY"], "quiet")
"""


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(WATCH) + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_scan_its_report_and_its_proof_open_no_connection_nor_do_the_libraries_when_imported(tmp_path):
    done = run(SCAN, image_folder(tmp_path / "data", n=40), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 quiet"


def test_the_watch_sees_a_look_up_and_a_connection():
    for code in (
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
    ):
        done = run(code)
        assert done.returncode == 97
        assert "NETWORK socket." in done.stderr
