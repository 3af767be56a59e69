"""Accounting for a test cluster: a mariadbd of its own, reached by a socket alone, and slurmdbd."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from configuration import free_ports

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults", "sacct", "sacctmgr")
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
LogFile={root}/log/slurmdbd.log
PidFile={root}/state/slurmdbd.pid
"""
SLURM_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={root}/munge/socket
"""


def missing(path: str) -> list[str]:
    """Programs that accounting needs and that are not on this PATH."""
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def configure(root: Path) -> str:
    """Make the database and slurmdbd.conf; the lines that slurm.conf needs. Raises CalledProcessError."""
    port = free_ports(1)[0]
    configuration = root / "slurmdbd.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(SLURMDBD_CONF.format(root=root, port=port))
    if not (root / "database").exists():
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={root}/database", "--skip-test-db"],
            check=True, capture_output=True,
        )  # fmt: skip
    return SLURM_CONF.format(root=root, port=port)


def database_command(root: Path) -> list[str]:
    """The command line of this cluster's mariadbd."""
    files = [f"--datadir={root}/database", f"--socket={socket(root)}", f"--pid-file={root}/state/mariadbd.pid"]
    return [
        "mariadbd",
        "--no-defaults",
        "--user=root",
        "--skip-networking",
        "--innodb-flush-log-at-trx-commit=0",
        *files,
    ]


def socket(root: Path) -> Path:
    """Where mariadbd listens."""
    return root / "state" / "mariadb"


def daemon_environment(root: Path) -> dict[str, str]:
    """What slurmdbd needs to find the database."""
    return {"MYSQL_UNIX_PORT": str(socket(root)), "SLURM_CONF": os.fspath(root / "slurm.conf")}
