# shellcheck shell=bash
# How long the compiler takes; needs no lab.

# seconds of a command, which must not fail
timed() {
  local began
  began=$(date +%s.%N)
  "$@" >&2 || fail "failed: $*"
  since "$began"
}

build() {
  git diff --quiet -- src/plan.rs || fail "src/plan.rs is changed; commit it first, for lines are added to it and taken away again"
  export CARGO_TARGET_DIR=/var/tmp/private-registry-bench-build
  trap 'git checkout --quiet -- src/plan.rs; rm -rf "$CARGO_TARGET_DIR"' EXIT
  cargo fetch --quiet --locked
  say "load $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) cores"
  echo "| | from nothing | after a change of one line in src/plan.rs |"
  echo '|---|---|---|'
  local row cold warm command
  for row in "check" "build" "test --workspace --no-run" "build --release -p private-registry"; do
    read -ra command <<<"$row"
    rm -rf "$CARGO_TARGET_DIR"
    cold=$(timed cargo "${command[@]}" --quiet --locked)
    echo "const _: u64 = $RANDOM;" >>src/plan.rs
    warm=$(timed cargo "${command[@]}" --quiet --locked)
    printf '| cargo %s | %s s | %s s |\n' "$row" "$cold" "$warm"
  done
}
