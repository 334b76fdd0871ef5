#!/bin/sh
# Guest script: LIO over /dev/vda as main storage, open to every host, with an ACL for the gateway.
# variables: PORTAL=addr:port TARGET GATEWAY=initiator-name
# commands, one a line: run BASE64 (a shell command; its output and status come back) | stop
. /usr/lib/bench.sh
run modprobe virtio_blk 2>/dev/null
run mkdir -p /etc/target/pr /etc/target/alua     # LIO writes its reservations there
wait_for 10 test -b /dev/vda || die "no disk"
lio_start || die "no LIO"
run lio_block disk /dev/vda
echo 1 >"$LIO/core/iblock_0/disk/attrib/emulate_write_cache" 2>/dev/null
run lio_target "$TARGET" "$PORTAL"
run lio_lun "$TARGET" 0 iblock_0/disk
run lio_acl "$TARGET" "$GATEWAY" 0
run lio_enable "$TARGET"
echo "READY $(uname -r)"
while read -r command argument; do
	case $command in
	run)
		echo "$argument" | base64 -d >/tmp/command
		sh /tmp/command >/tmp/out 2>/tmp/err </dev/null
		echo "STATUS $?"
		echo "OUT $(base64 -w0 /tmp/out)"
		echo "ERR $(base64 -w0 /tmp/err)"
		;;
	stop) break ;;
	esac
	echo "DONE $command"
done
