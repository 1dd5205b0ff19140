# Sourced by the scripts: a virtual environment with what requirements.txt names; quick when it is there already.
# VENV=DIR names its place (default .venv), so that clones can share one. Sets PY, its interpreter.
# CONSTRAINTS=constraints-torch211.txt installs the packages that this file names as it says.
# The caller stands in the root of the repository.

VENV="${VENV:-.venv}"
PY="$VENV/bin/python"

install_requirements() {
    local wanted stamp="$VENV/.requirements.sha256" list="$VENV/requirements.txt" name
    wanted="$(cat requirements.txt ${CONSTRAINTS:+"$CONSTRAINTS"} | sha256sum | cut -d' ' -f1)"
    if [[ -x "$PY" && -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
        return 0
    fi
    if [[ ! -x "$PY" ]]; then
        if ! command -v python3.11 > /dev/null; then
            echo "error: python3.11 not found: install Python 3.11, or set VENV to an environment made with it" >&2
            return 2
        fi
        echo "Making the virtual environment $VENV" >&2
        python3.11 -m venv "$VENV" || return 2
    fi
    cp requirements.txt "$list"
    if [[ -n "${CONSTRAINTS:-}" ]]; then
        while IFS='<>=' read -r name _; do
            sed -i "s/^${name}==.*/${name}/" "$list"
        done < <(grep -v '^#' "$CONSTRAINTS")
    fi
    echo "Installing requirements.txt into $VENV" >&2
    "$PY" -m pip install --quiet --disable-pip-version-check -r "$list" ${CONSTRAINTS:+-c "$CONSTRAINTS"} || return 2
    echo "$wanted" > "$stamp"
}

install_requirements || exit $?
export PY
