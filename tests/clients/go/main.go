// Drives a cluster with etcd's own client and its concurrency package. Arguments: endpoints, separated by commas.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

var ctx = context.Background()

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func check(holds bool, format string, args ...any) {
	if !holds {
		panic(fmt.Sprintf(format, args...))
	}
}

func main() {
	endpoints := strings.Split(os.Args[1], ",")
	client := must(clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second}))
	defer client.Close()
	steps := []struct {
		name string
		run  func(*clientv3.Client)
	}{
		{"kv", kv}, {"txn", txn}, {"watch", watch}, {"lease", lease}, {"lock", lock}, {"elect", elect},
		{"stm", stm}, {"wrappers", wrappers}, {"compact", compact}, {"members", members}, {"status", status},
		{"snapshot", snapshot},
	}
	for _, step := range steps {
		step.run(client)
		fmt.Println("ok", step.name)
	}
}

func kv(client *clientv3.Client) {
	first := must(client.Put(ctx, "kv/a", "1"))
	must(client.Put(ctx, "kv/b", "2"))
	previous := must(client.Put(ctx, "kv/a", "3", clientv3.WithPrevKV()))
	check(string(previous.PrevKv.Value) == "1", "previous %v", previous.PrevKv)
	all := must(client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)))
	check(all.Count == 2 && string(all.Kvs[0].Key) == "kv/a" && all.Kvs[0].Version == 2, "all %v", all)
	limited := must(client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithLimit(1)))
	check(limited.More && limited.Count == 2 && len(limited.Kvs) == 1, "limited %v", limited)
	old := must(client.Get(ctx, "kv/a", clientv3.WithRev(first.Header.Revision)))
	check(string(old.Kvs[0].Value) == "1", "old %v", old)
	counted := must(client.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithSerializable()))
	check(counted.Count == 2 && len(counted.Kvs) == 0, "counted %v", counted)
	deleted := must(client.Delete(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
	check(deleted.Deleted == 2 && len(deleted.PrevKvs) == 2, "deleted %v", deleted)
	_, err := client.Put(ctx, "", "x")
	check(errors.Is(err, rpctypes.ErrEmptyKey), "an empty key: %v", err)
	_, err = client.Get(ctx, "kv/a", clientv3.WithRev(deleted.Header.Revision+100))
	check(errors.Is(err, rpctypes.ErrFutureRev), "a future revision: %v", err)
}

func txn(client *clientv3.Client) {
	must(client.Put(ctx, "txn/a", "1"))
	done := must(client.Txn(ctx).If(
		clientv3.Compare(clientv3.Value("txn/a"), "=", "1"),
		clientv3.Compare(clientv3.CreateRevision("txn/none"), "=", 0),
		clientv3.Compare(clientv3.Version("txn/").WithPrefix(), ">", 0),
	).Then(
		clientv3.OpPut("txn/a", "2"),
		clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("txn/a"), "=", "1")},
			[]clientv3.Op{clientv3.OpGet("txn/a")}, nil),
	).Else(clientv3.OpGet("txn/a")).Commit())
	nested := done.Responses[1].GetResponseTxn()
	check(done.Succeeded && nested.Succeeded, "succeeded %v", done)
	check(string(nested.Responses[0].GetResponseRange().Kvs[0].Value) == "2", "nested %v", nested)
	failed := must(client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("txn/a"), "<", 2)).
		Then(clientv3.OpPut("txn/a", "3")).Else(clientv3.OpGet("txn/a"), clientv3.OpDelete("txn/a")).Commit())
	check(!failed.Succeeded && failed.Responses[1].GetResponseDeleteRange().Deleted == 1, "failed %v", failed)
}

func watch(client *clientv3.Client) {
	first := must(client.Put(ctx, "watch/a", "1"))
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := client.Watch(watching, "watch/", clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	must(client.Put(ctx, "watch/a", "2"))
	must(client.Delete(ctx, "watch/a"))
	var seen []string
	for response := range changes {
		check(response.Err() == nil, "watch: %v", response.Err())
		for _, event := range response.Events {
			before := "-"
			if event.PrevKv != nil {
				before = string(event.PrevKv.Value)
			}
			seen = append(seen, fmt.Sprintf("%v %s=%s before %s", event.Type, event.Kv.Key, event.Kv.Value, before))
		}
		if len(seen) == 3 {
			break
		}
	}
	expected := []string{"PUT watch/a=1 before -", "PUT watch/a=2 before 1", "DELETE watch/a= before 2"}
	check(fmt.Sprint(seen) == fmt.Sprint(expected), "seen %v", seen)

	quiet := client.Watch(watching, "watch/quiet", clientv3.WithFilterPut(), clientv3.WithFragment())
	must(client.Put(ctx, "watch/quiet", "x"))
	must(client.Delete(ctx, "watch/quiet"))
	event := (<-quiet).Events[0]
	check(event.Type == clientv3.EventTypeDelete, "filtered %v", event)
	// Needs watches that have caught up.
	idle := client.Watch(clientv3.WithRequireLeader(ctx), "watch/idle", clientv3.WithProgressNotify())
	for told := false; !told; {
		check(client.RequestProgress(clientv3.WithRequireLeader(ctx)) == nil, "asked for progress")
		select {
		case response := <-idle:
			told = response.IsProgressNotify()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func lease(client *clientv3.Client) {
	granted := must(client.Grant(ctx, 30))
	must(client.Put(ctx, "lease/a", "x", clientv3.WithLease(granted.ID)))
	alive, stop := context.WithCancel(ctx)
	answers := must(client.KeepAlive(alive, granted.ID))
	check((<-answers).TTL == 30, "kept alive")
	stop()
	check(must(client.KeepAliveOnce(ctx, granted.ID)).TTL == 30, "kept alive once")
	shown := must(client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys()))
	check(shown.GrantedTTL == 30 && shown.TTL > 0 && string(shown.Keys[0]) == "lease/a", "shown %v", shown)
	known := false
	for _, lease := range must(client.Leases(ctx)).Leases {
		known = known || lease.ID == granted.ID
	}
	check(known, "the lease is not listed")
	must(client.Revoke(ctx, granted.ID))
	check(must(client.Get(ctx, "lease/a")).Count == 0, "the key outlived its lease")
	_, err := client.KeepAliveOnce(ctx, granted.ID)
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "renewed: %v", err)
	_, err = client.Put(ctx, "lease/a", "x", clientv3.WithLease(granted.ID))
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "put: %v", err)
}

func session(client *clientv3.Client) *concurrency.Session {
	return must(concurrency.NewSession(client, concurrency.WithTTL(20)))
}

func lock(client *clientv3.Client) {
	one, other := session(client), session(client)
	first, second := concurrency.NewMutex(one, "lock"), concurrency.NewMutex(other, "lock")
	check(first.Lock(ctx) == nil, "the first lock")
	check(errors.Is(second.TryLock(ctx), concurrency.ErrLocked), "tried a lock that is held")
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	check(errors.Is(second.Lock(short), context.DeadlineExceeded), "waited for a lock that is held")
	cancel()
	check(must(client.Get(ctx, "lock/", clientv3.WithPrefix())).Count == 1, "who gave up is still in the queue")
	locked := make(chan error)
	go func() { locked <- second.Lock(ctx) }()
	for must(client.Get(ctx, "lock/", clientv3.WithPrefix())).Count < 2 {
		time.Sleep(10 * time.Millisecond)
	}
	owned := must(client.Txn(ctx).If(first.IsOwner()).Then(clientv3.OpPut("lock-guarded", "first")).Commit())
	check(owned.Succeeded, "the owner")
	check(first.Unlock(ctx) == nil, "unlocked")
	check(<-locked == nil, "the second lock")
	// Its session ends while somebody waits in the queue.
	third := concurrency.NewMutex(one, "lock")
	go func() { locked <- third.Lock(ctx) }()
	for must(client.Get(ctx, "lock/", clientv3.WithPrefix())).Count < 2 {
		time.Sleep(10 * time.Millisecond)
	}
	check(one.Close() == nil, "closed")
	check(second.Unlock(ctx) == nil, "unlocked")
	check(errors.Is(<-locked, concurrency.ErrSessionExpired), "a lock for a session that is over")
	check(other.Close() == nil, "closed")
}

func elect(client *clientv3.Client) {
	one, other := session(client), session(client)
	first, second := concurrency.NewElection(one, "elect"), concurrency.NewElection(other, "elect")
	_, err := first.Leader(ctx)
	check(errors.Is(err, concurrency.ErrElectionNoLeader), "a leader before any: %v", err)
	check(first.Campaign(ctx, "one") == nil, "campaign")
	elected := make(chan error)
	go func() { elected <- second.Campaign(ctx, "two") }()
	observing, stop := context.WithCancel(ctx)
	defer stop()
	leaders := concurrency.NewElection(one, "elect").Observe(observing)
	value := func() string { return string((<-leaders).Kvs[0].Value) }
	check(value() == "one", "the first leader")
	check(first.Proclaim(ctx, "uno") == nil, "proclaimed")
	check(value() == "uno", "what it proclaims")
	check(string(must(second.Leader(ctx)).Kvs[0].Value) == "uno", "the leader")
	check(first.Resign(ctx) == nil, "resigned")
	check(<-elected == nil, "the second campaign")
	check(value() == "two", "the second leader")
	resumed := concurrency.ResumeElection(other, "elect", second.Key(), second.Rev())
	check(resumed.Proclaim(ctx, "dos") == nil && value() == "dos", "resumed")
	check(errors.Is(first.Proclaim(ctx, "x"), concurrency.ErrElectionNotLeader), "proclaimed after resigning")
	check(one.Close() == nil && other.Close() == nil, "closed")
}

// Software transactions, a barrier of its own kind: many add to one counter at once.
func stm(client *clientv3.Client) {
	must(client.Put(ctx, "stm", ""))
	const workers, each = 4, 10
	done := make(chan error)
	for range workers {
		go func() {
			for range each {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					stm.Put("stm", stm.Get("stm")+"x")
					return nil
				})
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range workers {
		check(<-done == nil, "a software transaction")
	}
	check(len(must(client.Get(ctx, "stm")).Kvs[0].Value) == workers*each, "additions were lost")
}

// What the client's own packages build on the calls: prefixes, reads that never go back, keys cached under leases.
func wrappers(client *clientv3.Client) {
	prefixed := namespace.NewKV(client.KV, "space/")
	must(prefixed.Put(ctx, "a", "1"))
	check(must(client.Get(ctx, "space/a")).Count == 1, "the prefix")
	ordered := ordering.NewKV(client.KV, func(op clientv3.Op, response clientv3.OpResponse, revision int64) error {
		return errors.New("a read went back")
	})
	check(must(ordered.Get(ctx, "space/a")).Count == 1, "ordered")
	cached, stop, err := leasing.NewKV(client, "leasing/")
	check(err == nil, "leasing: %v", err)
	defer stop()
	check(must(cached.Get(ctx, "space/a")).Count == 1, "cached")
	must(cached.Put(ctx, "space/a", "2"))
	check(string(must(cached.Get(ctx, "space/a")).Kvs[0].Value) == "2", "cached after a put")
}

func compact(client *clientv3.Client) {
	first := must(client.Put(ctx, "compact", "1"))
	last := must(client.Put(ctx, "compact", "2"))
	must(client.Compact(ctx, last.Header.Revision, clientv3.WithCompactPhysical()))
	_, err := client.Get(ctx, "compact", clientv3.WithRev(first.Header.Revision))
	check(errors.Is(err, rpctypes.ErrCompacted), "read below the compaction: %v", err)
	ended := <-client.Watch(ctx, "compact", clientv3.WithRev(first.Header.Revision))
	check(ended.CompactRevision == last.Header.Revision && errors.Is(ended.Err(), rpctypes.ErrCompacted), "watch %v", ended)
}

func members(client *clientv3.Client) {
	list := must(client.MemberList(ctx))
	check(len(list.Members) == len(client.Endpoints()), "members %v", list.Members)
	check(client.Sync(ctx) == nil, "synced")
	known := client.Endpoints()
	sort.Strings(known)
	check(len(known) == len(list.Members) && strings.HasPrefix(known[0], "http://"), "endpoints %v", known)
}

func status(client *clientv3.Client) {
	leaders := map[uint64]bool{}
	hashes := map[uint32]bool{}
	revision := must(client.Put(ctx, "status", "x")).Header.Revision
	for _, endpoint := range client.Endpoints() {
		status := must(client.Status(ctx, endpoint))
		check(status.Version != "" && status.RaftAppliedIndex > 0, "status %v", status)
		leaders[status.Leader] = true
		hashes[must(client.HashKV(ctx, endpoint, revision)).Hash] = true
		must(client.Defragment(ctx, endpoint))
	}
	check(len(leaders) == 1 && len(hashes) == 1, "leaders %v, hashes %v", leaders, hashes)
	check(len(must(client.AlarmList(ctx)).Alarms) == 0, "alarms")
}

func snapshot(client *clientv3.Client) {
	shot := must(client.SnapshotWithVersion(ctx))
	image := must(io.ReadAll(shot.Snapshot))
	body, digest := image[:len(image)-sha256.Size], image[len(image)-sha256.Size:]
	sum := sha256.Sum256(body)
	check(bytes.Equal(sum[:], digest) && shot.Version != "", "a snapshot of %d bytes, %q", len(image), shot.Version)
}
