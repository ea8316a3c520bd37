#!/usr/bin/env bash
# The main job from nothing: distil, quantise, export, evaluate, serve, analyse real code.
# Usage: scripts/demo.sh BIN  (the folder with the deepcode-* commands)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
port=${DEEPCODE_DEMO_PORT:-8731}
url=http://127.0.0.1:$port

"$bin/deepcode-compress" run recipes/nano.yaml

"$bin/deepcode-serve" runs/nano/bundle --port "$port" >runs/nano/serve.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    if "$bin/python" -c "import httpx; httpx.get('$url/health/ready').raise_for_status()" 2>/dev/null; then break; fi
    kill -0 $server || { cat runs/nano/serve.log; exit 1; }
    sleep 0.1
done

real=$("$bin/python" -c 'import shlex; print(shlex.__file__)')
echo
echo "== A real file of the standard library: $(basename "$real")"
"$bin/deepcode-check" "$real" --url "$url" --fail-on never
echo
echo "== A sample with ten planted defects: recipes/samples/orders.py, and all that the student is 30% sure of"
"$bin/deepcode-check" recipes/samples/orders.py --url "$url" --fail-on never --min-confidence 0.3
