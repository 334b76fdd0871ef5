#!/bin/sh
# Guest script: a Linux host with ext4 on an iSCSI disk and verifying writers on it, while others move its sessions.
# variables: PORTALS="addr:port ..." TARGET LUN [SETTINGS="name=value ..."] [JOBS=3] [PAUSE=0.1: tell of longer ones]
#	[CHAP_USER CHAP_SECRET [MUTUAL_USER MUTUAL_SECRET]] [DIGESTS=1]
# Several portals are paths of one disk under dm-multipath.
# commands, one a line: where | mark NAME | sum NAME | log | stop; each but stop ends with "DONE ..."
. /usr/lib/bench.sh
: "${LUN:=1}" "${JOBS:=3}" "${PAUSE:=0.1}"

iscsi_start 0 || die "iscsid does not start"
paths=0
for portal in $PORTALS; do
	iscsi_node "$TARGET" "$portal" $SETTINGS || die "node record"
	[ -n "$CHAP_USER" ] && { iscsi_chap "$TARGET" "$portal" "$CHAP_USER" "$CHAP_SECRET" $MUTUAL_USER $MUTUAL_SECRET || die "chap"; }
	[ -n "$DIGESTS" ] && { iscsi_node "$TARGET" "$portal" "node.conn[0].iscsi.HeaderDigest=CRC32C" \
		"node.conn[0].iscsi.DataDigest=CRC32C" || die "digests"; }
	iscsi_login "$TARGET" "$portal" >/dev/null || die "login at $portal"
	paths=$((paths + 1))
done
dev=$(iscsi_disk "$TARGET" "$LUN") || die "no disk"
if [ "$paths" -gt 1 ]; then
	wait_for 20 sh -c ". /usr/lib/bench.sh; [ \$(iscsi_disks '$TARGET' '$LUN' | wc -l) = $paths ]" || die "a path has no disk"
	run modprobe -a dm_mod dm_multipath dm_round_robin
	size=$(cat "/sys/block/${dev##*/}/size")
	list=
	for path in $(iscsi_disks "$TARGET" "$LUN"); do list="$list $path 1"; done
	run dmsetup create mpath --table "0 $size multipath 1 queue_if_no_path 0 1 1 round-robin 0 $paths 1$list"
	run dmsetup mknodes
	dev=/dev/mapper/mpath
fi
run mkfs.ext4 -q -E nodiscard "$dev"
run mount "$dev" /mnt
io=
for i in $(seq "$JOBS"); do
	ioverify -t 0 -s 2m -f 32 -S "$i" -g "$PAUSE" "/mnt/verify$i" &
	io="$io $!"
done
# the file system's own journal beside it
( n=0; while [ ! -e /tmp/end ]; do
	n=$((n + 1)); echo "$n" >/mnt/new && mv /mnt/new "/mnt/n$((n % 50))" && sync || { echo "small files: FAILED"; break; }
	usleep 300000
done ) &
churn=$!
sleep 1
echo "READY $(uname -r)"
while read -r cmd name; do
	case $cmd in
	where) iscsi_where "$TARGET" | sed 's/^/AT /' ;;
	mark) head -c 300000 /dev/urandom >"/mnt/$name" && sync && echo "SUM $(sha256sum <"/mnt/$name" | cut -d' ' -f1)" ;;
	log) cat /var/log/iscsid.log ;;
	stop) break ;;
	esac
	echo "DONE $cmd"
done
touch /tmp/end
kill $io
rc=0
for p in $io; do wait "$p" || rc=$?; done
wait $churn
[ $rc = 0 ] || die "ioverify ended with $rc"
mount | grep ' /mnt ' | grep -q 'rw' || die "the file system was remounted read-only"
run umount /mnt
run e2fsck -f -n "$dev" >/tmp/fsck.out 2>&1
[ "$paths" -gt 1 ] && run dmsetup remove mpath
run iscsi_logout "$TARGET" >/dev/null
log_clean || die "errors in the kernel log"
say "all good"
