#!/usr/bin/env bash
# Builds the image of the Dockerfile and tries it, without a container engine: as root, with debootstrap and buildah.
#
#   benchmarks/container.sh FOLDER [options of `buildah build`: a volume with wheels, for example]
#
# FOLDER takes about 8 GB. What debootstrap makes of Debian stands for the image debian:bookworm-slim. The server runs as
# the image says: as its user, the file system read-only but for /tmp, without capabilities. It must get ready, judge a
# photograph, find no place to write but /tmp, and end at SIGTERM. Writes benchmarks/results/container.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(realpath -m "$1") && shift
base=docker.io/library/debian:bookworm-slim
tool() { buildah --storage-driver vfs --root "$folder/store" --runroot "$folder/run" "$@"; }
mkdir -p "$folder"

if ! tool inspect --type image $base > "$folder/base.json" 2> /dev/null; then
  [ -d "$folder/debian" ] || debootstrap --variant=minbase bookworm "$folder/debian"
  container=$(tool from scratch)
  tool copy -q "$container" "$folder/debian" /
  tool commit -q "$container" $base
  tool rm "$container"
fi
tool bud --format docker --isolation chroot --network host --pull-never -q -t clipmole "$@" .

container=$(tool from --pull-never localhost/clipmole)
root=$(tool mount "$container")
read -r user entry <<< "$(tool inspect --type image --format '{{.OCIv1.Config.User}} {{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}' localhost/clipmole)"
mapfile -t variables < <(tool inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' localhost/clipmole | sed '/^$/d')
tried=$folder/tried
mkdir -p "$tried" && mount --bind "$root" "$tried" && mount -o remount,bind,ro "$tried"
mount -t tmpfs tmpfs "$tried/tmp" && mount -t proc proc "$tried/proc" && mount --bind /dev "$tried/dev"
rights=(--reuid "$user" --regid "$user" --clear-groups --bounding-set=-all --no-new-privs)
inside() { env -i "${variables[@]}" chroot "$tried" setpriv "${rights[@]}" -- "$@"; }
server=0
finish() {
  [ $server = 0 ] || kill -KILL $server 2> /dev/null || true
  umount "$tried/dev" "$tried/proc" "$tried/tmp" "$tried"
  tool rm "$container" > /dev/null
}
trap finish EXIT

writable=$(inside python3 -c 'import os
for place, folders, _ in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(place, f) not in ("/proc", "/dev", "/sys")]
    if os.access(place, os.W_OK): print(place)' | grep -v '^/tmp' || true)
[ -z "$writable" ] || { echo "user $user can write to $writable" >&2; exit 1; }

began=$(date +%s%N)
env -i "${variables[@]}" chroot "$tried" setpriv "${rights[@]}" -- $entry --allowed-host localhost 2> "$folder/server.log" &
server=$!
ask() { inside python3 -c "import http.client as h, sys
c = h.HTTPConnection('127.0.0.1', 8000, timeout=60)
c.request(sys.argv[1], sys.argv[2], sys.stdin.buffer.read() if sys.argv[1] == 'POST' else None, {'Host': 'localhost'})
r = c.getresponse(); print(r.read().decode()); raise SystemExit(r.status != 200)" "$@"; }
for _ in $(seq 600); do ask GET /readyz > /dev/null 2>&1 && break; sleep 0.2; done
seconds=$(( ($(date +%s%N) - began) / 1000000000 ))
answer=$(ask POST "/v1/detect/bytes" < examples/astronaut.png)
verdict=$(sed -n 's/.*"verdict":"\([a-z_]*\)".*/\1/p' <<< "$answer")
[ "$verdict" = real ] || { echo "no verdict on a photograph: $answer" >&2; exit 1; }
kill -TERM $server && wait $server && server=0 || { echo "the server did not end at SIGTERM with exit code 0" >&2; exit 1; }

size() { du -sm "$1" | cut -f 1; }
cat > benchmarks/results/container.md << END
Unpacked the image has $(size "$root") MiB: $(size "$root/opt/clipmole") of Python packages (PyTorch for the CPU $(size "$(echo "$root"/opt/clipmole/lib/python*/site-packages/torch)")), the rest Debian with $(inside python3 --version). The server was ready after $seconds s, as user $user, without capabilities, on a read-only file system. $(date +%F), $(nproc) cores$(sed -n 's/^model name.*: */ /p' /proc/cpuinfo | head -1), busy with other work.
END
cat benchmarks/results/container.md
