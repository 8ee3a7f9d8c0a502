# Shared by the scripts: they run from the repository's root, whatever the caller's directory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${DATA_DIR:=$HOME/tensorflow_datasets}" "${RUNS:=runs}"
