------------------------------- MODULE Ahead -------------------------------
(***************************************************************************)
(* Survivors run a broken step again before the loss is decided.           *)
(*                                                                         *)
(* All ranks run under one epoch. Any rank may come to suspect any other   *)
(* one, rightly or not, and go on under what is left of the epoch without  *)
(* it. What a step brings out is held until the leader has decided the     *)
(* same version; it may decide another one. A step is complete when the    *)
(* tags of all whom the rank's own table counts on have come, and a tag    *)
(* says nothing but a stamp.                                               *)
(*                                                                         *)
(* Unique (each loss has a stamp of its own) and Hold are the safeguards;  *)
(* each negative control sets one of them to FALSE.                        *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS Ranks, MaxEpoch, Unique, Hold

VARIABLES
    alive,      \* who runs
    at,         \* per rank: the version it runs under
    held,       \* per rank: it has completed a step whose outcome is held
    decided,    \* the leader's versions, in order
    sampled,    \* versions that something was sampled from
    torn        \* a step was completed by ranks with different tables

vars == <<alive, at, held, decided, sampled, torn>>

Span == Cardinality(Ranks) + 1
Version(stamp, members, epoch) == [stamp |-> stamp, members |-> members, epoch |-> epoch]
Own(epoch, members) == Version(epoch * Span, members, epoch)
(* What is left of a version without r. Its epoch is the one before until it is decided. *)
Without(v, r) == Version(v.epoch * Span + (IF Unique THEN r ELSE 1), v.members \ {r}, v.epoch)

First == Own(1, Ranks)
Last == decided[Len(decided)]
(* The same version, whatever it was called before it was decided. *)
Same(v, w) == v.stamp = w.stamp /\ v.members = w.members
IsDecided(v) == \E i \in 1..Len(decided) : Same(decided[i], v)

Init ==
    /\ alive = Ranks
    /\ at = [r \in Ranks |-> First]
    /\ held = [r \in Ranks |-> FALSE]
    /\ decided = <<First>>
    /\ sampled = {}
    /\ torn = FALSE

Die(r) ==
    /\ r \in alive
    /\ alive' = alive \ {r}
    /\ UNCHANGED <<at, held, decided, sampled, torn>>

(* One at a time, and only from a decided version: worker/engine/membership.py, go_on_without. *)
GoOn(r) ==
    \E x \in at[r].members \ {r} :
        /\ r \in alive
        /\ ~held[r]
        /\ \E i \in 1..Len(decided) : decided[i] = at[r]
        /\ at' = [at EXCEPT ![r] = Without(at[r], x)]
        /\ UNCHANGED <<alive, held, decided, sampled, torn>>

(* The tags of all whom r counts on carry its stamp: for r the step is complete. *)
Step(r) ==
    /\ r \in alive
    /\ ~held[r]
    /\ \A m \in at[r].members : m \in alive /\ at[m].stamp = at[r].stamp
    /\ held' = [held EXCEPT ![r] = TRUE]
    /\ torn' = (torn \/ \E m \in at[r].members : ~Same(at[m], at[r]))
    /\ UNCHANGED <<alive, at, decided, sampled>>

Sample(r) ==
    /\ r \in alive
    /\ held[r]
    /\ Hold => IsDecided(at[r])
    /\ sampled' = sampled \union {[stamp |-> at[r].stamp, members |-> at[r].members]}
    /\ held' = [held EXCEPT ![r] = FALSE]
    /\ UNCHANGED <<alive, at, decided, torn>>

(* Either what is left without one rank, or a version of its own. *)
Decide ==
    /\ Last.epoch < MaxEpoch
    /\ \/ \E x \in Last.members :
            /\ Last.members # {x}
            /\ decided' = Append(decided, [Without(Last, x) EXCEPT !.epoch = Last.epoch + 1])
       \/ \E some \in (SUBSET Last.members) \ {{}} : decided' = Append(decided, Own(Last.epoch + 1, some))
    /\ UNCHANGED <<alive, at, held, sampled, torn>>

(* The agent hands the latest decision over: the rank runs under it already and only learns its number, or crosses. One
   that went on under a greater stamp cannot, and waits for a version of its own. *)
Hear(r) ==
    /\ r \in alive
    /\ r \in Last.members
    /\ at[r].epoch < Last.epoch
    /\ \/ /\ Same(at[r], Last)
          /\ at' = [at EXCEPT ![r] = Last]
          /\ UNCHANGED held
       \/ /\ ~Same(at[r], Last)
          /\ Last.stamp > at[r].stamp
          /\ at' = [at EXCEPT ![r] = Last]
          /\ held' = [held EXCEPT ![r] = FALSE]
    /\ UNCHANGED <<alive, decided, sampled, torn>>

Next == (\E r \in Ranks : Die(r) \/ GoOn(r) \/ Step(r) \/ Sample(r) \/ Hear(r)) \/ Decide

Spec == Init /\ [][Next]_vars

(* --- what must hold ------------------------------------------------------ *)
(* 2: one step, one table *)
OneTable == ~torn

(* 5: output is sampled only from what the leader decided *)
OnlyDecided == \A v \in sampled : IsDecided(v)

(* A rank's versions only grow, as the data plane demands. *)
StampsGrow == [][\A r \in Ranks : at'[r].stamp >= at[r].stamp]_vars

(* No rank is left behind for good: a version of its own is above whatever anybody went on with. *)
CanFollow == \A r \in Ranks : Own(Last.epoch + 1, Last.members).stamp > at[r].stamp
=============================================================================
