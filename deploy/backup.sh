#!/bin/sh
# Copies a state directory while the service runs:  deploy/backup.sh STATE_DIR NEW_FOLDER
# The database comes first. A job that ends meanwhile finds its result when the copy is started; a job that is newer than the
# copied database is not in the backup. With PostgreSQL run pg_dump instead of the first step, before this script.
set -eu
umask 077
state=$1 copy=$2
mkdir "$copy"
if [ -e "$state/jobs.sqlite" ]; then
  python3 -c 'import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as source, sqlite3.connect(sys.argv[2]) as target:
    source.backup(target)' "$state/jobs.sqlite" "$copy/jobs.sqlite"
fi
# Uploads and attempts in progress are worth nothing; the reserve and the lock are made anew.
# Files may be erased or renamed while tar reads them (exit status 1).
status=0
tar -C "$state" --warning=no-file-changed --warning=no-file-removed --ignore-failed-read \
  --exclude='./jobs.sqlite*' --exclude=./incoming --exclude=./work --exclude=./reserve --exclude=./lock -cf - . \
  | tar -C "$copy" -xpf - || status=$?
[ "$status" -le 1 ]
