----------------------------- MODULE Membership -----------------------------
(***************************************************************************)
(* Fence + two-phase flip + loss.                                          *)
(*                                                                         *)
(* etcd is one atomic register (the epoch record) and the identity of the  *)
(* current leader (its fence). Leaders read the record, decide, and write  *)
(* it later: anything may happen in between, another election included.    *)
(* Ranks prepare a version before they flip to it; a lost rank is masked   *)
(* by an aborting commit. A rank's engine can die, and can be a zombie     *)
(* that does not know that it was excluded.                                *)
(*                                                                         *)
(* Fenced, TwoPhase and Fresh are the three safeguards; each negative      *)
(* control sets one of them to FALSE and must violate an invariant.        *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS Ranks, Leaders, MaxEpoch, MaxFence, MaxIncarnation, Fenced, TwoPhase, Fresh

VARIABLES
    fence,      \* etcd: create_revision of the present leader's key
    record,     \* etcd: [epoch, members, prep, prepMembers, issued, revision, by]
    lead,       \* per leader: the fence it believes in, 0 when it follows
    plan,       \* per leader: a write on its way [what, record, seen, fence], or None
    engine,     \* per rank: [inc, alive, at, prepared, zombie]
    excluded,   \* per rank: highest incarnation that was ever excluded
    torn        \* a step ran on two tables, or with an unprepared one

vars == <<fence, record, lead, plan, engine, excluded, torn>>

None == [what |-> "none"]
Member(r) == [rank |-> r, inc |-> engine[r].inc]
RanksOf(members) == {m.rank : m \in members}

Init ==
    /\ fence = 0
    /\ record = [epoch |-> 1, members |-> {[rank |-> r, inc |-> 1] : r \in Ranks}, prep |-> 0, prepMembers |-> {},
                 issued |-> 1, revision |-> 0, by |-> 0]
    /\ lead = [l \in Leaders |-> 0]
    /\ plan = [l \in Leaders |-> None]
    /\ engine = [r \in Ranks |-> [inc |-> 1, alive |-> TRUE, at |-> 1, prepared |-> 1]]
    /\ excluded = [r \in Ranks |-> 0]
    /\ torn = FALSE

(* --- etcd: elections; a deposed leader does not know it --------------- *)
Elect(l) ==
    /\ fence < MaxFence
    /\ lead[l] # fence \/ fence = 0
    /\ fence' = fence + 1
    /\ lead' = [lead EXCEPT ![l] = fence + 1]
    /\ plan' = [plan EXCEPT ![l] = None]
    /\ UNCHANGED <<record, engine, excluded, torn>>

(* --- leaders: decide on what was read, write later -------------------- *)
Intend(l, what, next) ==
    /\ lead[l] > 0
    /\ plan[l] = None
    /\ plan' = [plan EXCEPT ![l] = [what |-> what, record |-> next, seen |-> record.revision, fence |-> lead[l]]]
    /\ UNCHANGED <<fence, record, lead, engine, excluded, torn>>

Admissible(r) == engine[r].alive /\ (Fresh => engine[r].inc > excluded[r])

DecidePrepare(l) ==
    \E target \in (SUBSET Ranks) \ {{}} :
        /\ record.prep = 0
        /\ record.issued < MaxEpoch
        /\ \A r \in target : r \in RanksOf(record.members) \/ Admissible(r)
        /\ LET kept == {m \in record.members : m.rank \in target}
               new == kept \union {Member(r) : r \in target \ RanksOf(record.members)}
           IN  /\ new # record.members
               /\ IF TwoPhase
                  THEN Intend(l, "prepare", [record EXCEPT !.prep = record.issued + 1, !.prepMembers = new,
                                                           !.issued = record.issued + 1])
                  ELSE Intend(l, "commit", [record EXCEPT !.epoch = record.issued + 1, !.members = new,
                                                          !.issued = record.issued + 1])

Prepared(m, e) == engine[m.rank].alive /\ engine[m.rank].inc = m.inc /\ engine[m.rank].prepared = e

DecideCommit(l) ==
    /\ record.prep > 0
    /\ \A m \in record.members \union record.prepMembers : Prepared(m, record.prep)
    /\ Intend(l, "commit", [record EXCEPT !.epoch = record.prep, !.members = record.prepMembers,
                                          !.prep = 0, !.prepMembers = {}])

DecideRollback(l) ==
    /\ record.prep > 0
    /\ Intend(l, "rollback", [record EXCEPT !.prep = 0, !.prepMembers = {}])

(* A time-out may accuse a live rank: the zombie that results must be harmless. *)
DecideAbort(l) ==
    \E m \in record.members :
        /\ record.issued < MaxEpoch
        /\ Intend(l, "abort", [record EXCEPT !.epoch = record.issued + 1, !.members = record.members \ {m},
                                             !.prep = 0, !.prepMembers = {}, !.issued = record.issued + 1])

Write(l) ==
    LET w == plan[l]
        allowed == ~Fenced \/ (w.fence = fence /\ w.seen = record.revision)
    IN  /\ w.what # "none"
        /\ plan' = [plan EXCEPT ![l] = None]
        /\ IF allowed
           THEN /\ record' = [w.record EXCEPT !.revision = record.revision + 1, !.by = w.fence]
                /\ excluded' = [r \in Ranks |->
                       IF w.what = "abort" /\ r \in RanksOf(record.members) /\ r \notin RanksOf(w.record.members)
                       THEN (CHOOSE m \in record.members : m.rank = r).inc
                       ELSE excluded[r]]
                /\ UNCHANGED <<fence, lead, engine, torn>>
           ELSE /\ lead' = [lead EXCEPT ![l] = IF w.fence = fence THEN @ ELSE 0]
                /\ UNCHANGED <<fence, record, engine, excluded, torn>>

(* --- ranks -------------------------------------------------------------- *)
Prepare(r) ==
    /\ record.prep > 0
    /\ engine[r].alive
    /\ Member(r) \in record.members \union record.prepMembers
    /\ engine[r].prepared # record.prep
    /\ engine' = [engine EXCEPT ![r].prepared = record.prep]
    /\ UNCHANGED <<fence, record, lead, plan, excluded, torn>>

(* All present members switch at one sync: nobody steps between. *)
Flip ==
    /\ record.epoch > 0
    /\ \E r \in Ranks : engine[r].at # record.epoch /\ Member(r) \in record.members /\ engine[r].alive
    /\ \A m \in record.members : engine[m.rank].inc = m.inc /\ engine[m.rank].alive
    /\ engine' = [r \in Ranks |-> IF Member(r) \in record.members THEN [engine[r] EXCEPT !.at = record.epoch]
                                                                   ELSE engine[r]]
    /\ UNCHANGED <<fence, record, lead, plan, excluded, torn>>

(* Without two phases each rank switches when it hears of the commit. *)
FlipAlone(r) ==
    /\ ~TwoPhase
    /\ engine[r].alive
    /\ Member(r) \in record.members
    /\ engine[r].at # record.epoch
    /\ engine' = [engine EXCEPT ![r].at = record.epoch]
    /\ torn' = (torn \/ \E m \in record.members : engine[m.rank].alive /\ engine[m.rank].at \notin {0, record.epoch})
    /\ UNCHANGED <<fence, record, lead, plan, excluded>>

Die(r) ==
    /\ engine[r].alive
    /\ engine[r].inc < MaxIncarnation
    /\ engine' = [engine EXCEPT ![r] = [inc |-> engine[r].inc, alive |-> FALSE, at |-> 0, prepared |-> 0]]
    /\ UNCHANGED <<fence, record, lead, plan, excluded, torn>>

Restart(r) ==
    /\ ~engine[r].alive
    /\ engine' = [engine EXCEPT ![r] = [inc |-> engine[r].inc + 1, alive |-> TRUE, at |-> 0, prepared |-> 0]]
    /\ UNCHANGED <<fence, record, lead, plan, excluded, torn>>

Next ==
    \/ \E l \in Leaders : Elect(l) \/ DecidePrepare(l) \/ DecideCommit(l) \/ DecideRollback(l) \/ DecideAbort(l) \/ Write(l)
    \/ \E r \in Ranks : Prepare(r) \/ FlipAlone(r) \/ Die(r) \/ Restart(r)
    \/ Flip

Spec == Init /\ [][Next]_vars

(* --- what must hold ------------------------------------------------------ *)
(* 2: one step, one table *)
OneTable == ~torn

(* 3: epochs only grow, and the fence that wrote never goes back *)
EpochsGrow == [][record'.epoch >= record.epoch /\ record'.issued >= record.issued /\ record'.by >= record.by]_vars

(* 3: no version number stands for two memberships *)
OneVersion == [][record'.epoch = record.epoch => record'.members = record.members]_vars

(* 6: an excluded process is never counted on again *)
NoZombieMember == \A m \in record.members \union record.prepMembers : m.inc > excluded[m.rank]
=============================================================================
